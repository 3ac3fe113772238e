"""The scripts of ci/."""
