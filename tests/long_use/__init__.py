"""What only shows in long or odd use: thousands of steps, many shapes, several threads, loads that no one expects."""
