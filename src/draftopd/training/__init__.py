"""The lab, on Lightning: the training step, its batches, callbacks, and runs of one stage or several."""
