"""What a task costs, in counts that do not depend on the machine: a slip shows in review, not in a benchmark."""
