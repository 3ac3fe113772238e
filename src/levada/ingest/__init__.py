"""The ingest room: the HTTP collector in front of Kafka, and the topics, users and rights inside it."""
