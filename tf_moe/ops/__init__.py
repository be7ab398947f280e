"""Pure tensor operations that gates, dispatch and experts share. They import nothing else of the package."""
