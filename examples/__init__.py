"""Programs to read: what members that are never formed are for."""
