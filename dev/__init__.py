"""What a developer runs on this project: environments, a local Airflow, the demo, the checks."""
