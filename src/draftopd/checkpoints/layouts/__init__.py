"""One file a published layout: config.json into a DrafterSpec, and back."""
