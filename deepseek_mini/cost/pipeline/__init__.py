"""Pipeline schedules: what each rank does in which order, and how long that takes."""
