"""The loss of a run before it is launched: a scaling law fitted on a ladder of small runs of the same family."""
