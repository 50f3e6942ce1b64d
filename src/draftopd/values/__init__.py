"""What a setting may be: types with bounds, the check of arguments against a signature, and its words."""
