"""Pure tensor operations that gates, dispatch and experts share. Beside one another they import `mesh` alone."""
