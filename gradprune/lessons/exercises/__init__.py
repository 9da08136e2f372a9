"""The exercises, a file a notebook: for each its hidden inputs, the right function, and wrong ones that are likely."""
