"""Leaderboards: what goes there, how it is sent once, and a leaderboard of one's own."""
