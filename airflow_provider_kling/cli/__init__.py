"""The command line: ``python -m airflow_provider_kling``, and ``airflow kling`` on Airflow 3.2 and later."""
