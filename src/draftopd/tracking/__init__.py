"""What runs write into MLflow: opened with clear errors, sent without holding anything up, ended whatever happens."""
