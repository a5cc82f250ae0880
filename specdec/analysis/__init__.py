"""What the records say: tables, statistics, theory and figures. Reads records, never a model."""
