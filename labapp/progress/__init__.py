"""What a learner has done: receipts, progress, the journey map, and the report on a class."""
