"""Names: families, variants, tasks and weight records. Imports no torch."""
