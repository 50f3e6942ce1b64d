"""Layers that make float32 models faster on x86 processors and leave what they compute as it is."""
