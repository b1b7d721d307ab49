"""A batch's results are sent to a leaderboard, each at most once."""
