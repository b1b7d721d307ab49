"""A leaderboard of one's own: page, endpoint, rows, points."""
