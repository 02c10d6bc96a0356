"""What the optimizer reaches, at equal compute, beside what else a user could pick."""
