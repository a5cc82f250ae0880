"""What is measured and how: timers, peak memory, results and the records made of them."""
