"""Golden files: what prumux 0.1.0 made of seeded models, kept to compare with."""
