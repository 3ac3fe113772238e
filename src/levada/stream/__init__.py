"""The stream room: the sink that carries events from Kafka to the lake, each exactly once."""
