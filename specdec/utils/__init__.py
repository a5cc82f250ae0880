"""The ground floor: errors, paths, logging and reproducibility. Imports nothing else of specdec."""
