"""What a job leaves in MLflow: its data, a description, and what may be shown of its slides."""
