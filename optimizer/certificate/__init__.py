"""How much a candidate loses, with 95 % confidence: budgets, bounds and certificates."""
