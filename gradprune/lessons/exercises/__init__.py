"""The exercises: right answers, hidden inputs and likely misconceptions, one file a topic."""
