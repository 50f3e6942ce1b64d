"""What a run says about itself: its plan before it starts, and where it has come to at its end."""
