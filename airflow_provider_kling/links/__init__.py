"""Links to videos in Airflow's UI."""
