#!/bin/sh
# Runs the Kafka program that this file is called as. The environment is that of the official scripts: KAFKA_HEAP_OPTS,
# KAFKA_JVM_PERFORMANCE_OPTS, KAFKA_LOG4J_OPTS, KAFKA_OPTS.
set -eu

log4j=tools
heap=-Xmx256m
gc=-XX:+UseSerialGC # what a short command needs
case ${0##*/} in
kafka-server-start.sh)
    class=kafka.Kafka
    log4j=server
    heap="-Xmx512m -Xms256m"
    gc="-XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:+ExitOnOutOfMemoryError"
    ;;
kafka-storage.sh) class=kafka.tools.StorageTool ;;
kafka-topics.sh) class=org.apache.kafka.tools.TopicCommand ;;
kafka-configs.sh) class=kafka.admin.ConfigCommand ;;
kafka-acls.sh) class=org.apache.kafka.tools.AclCommand ;;
kafka-console-consumer.sh) class=org.apache.kafka.tools.consumer.ConsoleConsumer ;;
kafka-get-offsets.sh) class=org.apache.kafka.tools.GetOffsetShell ;;
kafka-consumer-groups.sh) class=org.apache.kafka.tools.consumer.group.ConsumerGroupCommand ;;
kafka-metadata-quorum.sh) class=org.apache.kafka.tools.MetadataQuorumCommand ;;
*)
    echo "${0##*/}: no such Kafka program" >&2
    exit 64
    ;;
esac

# The options are lists of words.
# shellcheck disable=SC2086
exec java ${KAFKA_HEAP_OPTS:-$heap} ${KAFKA_JVM_PERFORMANCE_OPTS:-$gc} \
    ${KAFKA_LOG4J_OPTS:--Dlog4j2.configurationFile=/opt/kafka/config/$log4j-log4j2.yaml} ${KAFKA_OPTS:-} \
    -cp '/opt/kafka/libs/*' "$class" "$@"
