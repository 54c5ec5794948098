"""Tasks: what a stage learns, each as one value that the stages share."""
