"""The service's contract, without Airflow and without I/O."""
