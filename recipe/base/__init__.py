"""The ground floor: settings, checks, counts and errors. Imports neither torch nor any other floor."""
