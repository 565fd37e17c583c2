"""The doctor: checks of the installation, the storage, MLflow and the cluster, each in a process of its own."""
