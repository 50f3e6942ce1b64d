"""What goes out with an exported drafter: its model card, how it is served, and the way to the hub."""
