"""Programs to read: members that are never formed, and a run that is killed and goes on."""
