"""One file per drafter; they never import each other."""
