"""The judge: tasks and their labels, metrics, the model that scores a profile."""
