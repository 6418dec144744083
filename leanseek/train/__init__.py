"""One trainer for every stage, and the optimisers, schedules and objectives it is given."""
