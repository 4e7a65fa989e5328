//! What librdkafka says, in the words of ebus (G8, G9): a kind, whether trying again is safe, and what to do.

use ebus_core::{Error, ErrorKind, Retryability};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// The kind that a code of librdkafka or of a broker comes to.
pub(crate) fn kind_of(code: RDKafkaErrorCode) -> ErrorKind {
    use RDKafkaErrorCode as C;
    match code {
        C::MessageTimedOut
        | C::OperationTimedOut
        | C::RequestTimedOut
        | C::TimedOutQueue
        | C::PurgeQueue
        | C::PurgeInflight => ErrorKind::Timeout,
        // No partition asked for has a leader that is known.
        C::NoEnt
        // Metadata and answer are of different moments: a leader moves.
        | C::Inconsistent
        | C::AllBrokersDown
        | C::BrokerTransportFailure
        | C::Resolve
        | C::BrokerNotAvailable
        | C::LeaderNotAvailable
        | C::NotLeaderForPartition
        | C::CoordinatorNotAvailable
        | C::CoordinatorLoadInProgress
        | C::NotCoordinator
        | C::NotController
        | C::NetworkException
        | C::WaitingForCoordinator
        | C::ISRInsufficient
        | C::NotEnoughReplicas
        | C::NotEnoughReplicasAfterAppend
        | C::KafkaStorageError
        | C::UnknownLeaderEpoch
        | C::FencedLeaderEpoch
        | C::ReplicaNotAvailable
        | C::OffsetNotAvailable
        | C::EligibleLeadersNotAvailable
        | C::RebalanceInProgress => ErrorKind::Unavailable,
        C::UnknownTopic
        | C::UnknownTopicOrPartition
        | C::UnknownPartition
        | C::UnknownTopicId
        | C::GroupIdNotFound => ErrorKind::NotFound,
        C::MessageSizeTooLarge | C::MessageBatchTooLarge | C::InvalidMessageSize => ErrorKind::TooLarge,
        C::QueueFull => ErrorKind::Overloaded,
        C::Authentication
        | C::SaslAuthenticationFailed
        | C::SSL
        | C::TopicAuthorizationFailed
        | C::GroupAuthorizationFailed
        | C::ClusterAuthorizationFailed
        | C::TransactionalIdAuthorizationFailed
        | C::SecurityDisabled
        | C::UnsupportedSASLMechanism
        | C::IllegalSASLState => ErrorKind::Denied,
        C::UnknownMemberId
        | C::IllegalGeneration
        | C::FencedInstanceId
        | C::FencedMemberEpoch
        | C::StaleMemberEpoch
        | C::UnreleasedInstanceId
        | C::Fenced
        | C::InvalidProducerEpoch
        | C::AssignmentLost
        | C::PollExceeded => ErrorKind::Fenced,
        C::UnsupportedVersion
        | C::UnsupportedFeature
        | C::NotImplemented
        | C::UnsupportedAssignor
        | C::InconsistentGroupProtocol
        | C::UnsupportedForMessageFormat => ErrorKind::Unsupported,
        C::InvalidArgument
        | C::InvalidConfig
        | C::InvalidTopic
        | C::InvalidPartitions
        | C::InvalidReplicationFactor
        | C::InvalidReplicaAssignment
        | C::InvalidSessionTimeout
        | C::InvalidGroupId
        | C::InvalidTimestamp
        | C::PolicyViolation => ErrorKind::ConfigInvalid,
        C::BrokerDestroy => ErrorKind::Closed,
        _ => ErrorKind::Unexpected,
    }
}

/// What to do about it, for the kinds where the code alone does not say.
fn advice(code: RDKafkaErrorCode, kind: ErrorKind) -> &'static str {
    match (code, kind) {
        (RDKafkaErrorCode::InconsistentGroupProtocol, _) => {
            "another member of the group offers no cooperative-sticky assignor, or another group protocol; \
             change it there or choose another group"
        }
        (_, ErrorKind::Timeout) => "the broker did not answer in time",
        (_, ErrorKind::Unavailable) => {
            "the broker cannot be reached or is not ready; check the address and the cluster"
        }
        (_, ErrorKind::NotFound) => "it does not exist; create the topic first",
        (_, ErrorKind::TooLarge) => {
            "the broker takes no batch of this size; raise the topic's max.message.bytes, or set batch_bytes below it"
        }
        (_, ErrorKind::Overloaded) => "librdkafka's queue is full; publish more slowly",
        (_, ErrorKind::Denied) => {
            "the broker refused the connection or the permission; check credentials, TLS and ACLs"
        }
        (_, ErrorKind::Fenced) => "the group goes on without this member; its partitions belong to others",
        (_, ErrorKind::Unsupported) => "the broker does not support this",
        (_, ErrorKind::ConfigInvalid) => "the broker or librdkafka refused a value",
        (_, ErrorKind::Closed) => "the connection was closed before; open a new one",
        _ => "librdkafka failed",
    }
}

/// An error of `operation` from a code.
pub(crate) fn from_code(operation: &'static str, code: RDKafkaErrorCode) -> Error {
    let kind = kind_of(code);
    Error::new(kind, advice(code, kind)).with_operation(operation).with_source(KafkaError::Global(code))
}

/// An error of `operation` from what rdkafka gives.
pub(crate) fn from_kafka(operation: &'static str, error: KafkaError) -> Error {
    let Some(code) = error.rdkafka_error_code() else {
        let kind = match error {
            KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => ErrorKind::ConfigInvalid,
            _ => ErrorKind::Unexpected,
        };
        return Error::new(kind, advice(RDKafkaErrorCode::Unknown, kind))
            .with_operation(operation)
            .with_source(error);
    };
    let kind = kind_of(code);
    Error::new(kind, advice(code, kind)).with_operation(operation).with_source(error)
}

/// The failure of a publish. `stored` says whether the broker may have it all the same.
pub(crate) fn publish_failed(code: RDKafkaErrorCode, may_be_stored: bool) -> Error {
    let kind = kind_of(code);
    let error = match (kind, may_be_stored) {
        (ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::Unexpected | ErrorKind::Closed, true) => {
            Error::new(
                ErrorKind::Timeout,
                "the broker did not acknowledge the message in time; it may have been stored",
            )
        }
        (ErrorKind::Timeout | ErrorKind::Unavailable, false) => Error::new(
            ErrorKind::Unavailable,
            "the message could not be sent and is not stored; check the broker",
        )
        .with_retryability(Retryability::Safe),
        _ => Error::new(kind, advice(code, kind)),
    };
    error.with_operation("publish").with_source(KafkaError::MessageProduction(code))
}

/// Of a message that the broker has, when nobody said where: a receipt would have to invent it.
pub(crate) fn no_place(partition: i32) -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the message is stored, but the broker's answer with its offset was lost; published again, it is stored twice",
    )
    .with_operation("publish")
    .with_context("partition", partition)
}

/// A publish after librdkafka's producer has failed for good. Nothing of it is stored.
pub(crate) fn fatal(code: RDKafkaErrorCode, reason: &str) -> Error {
    Error::new(kind_of(code), "publishing has failed for good on this connection; open a new one")
        .with_operation("publish")
        .with_context("reason", reason)
        .with_source(KafkaError::MessageProduction(code))
}

/// Of a setting.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::ConfigInvalid, message).with_operation("configure")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timed_out_publish_says_whether_it_may_be_stored() {
        let error = publish_failed(RDKafkaErrorCode::MessageTimedOut, true);
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains("may have been stored"), "{error}");
        let error = publish_failed(RDKafkaErrorCode::MessageTimedOut, false);
        assert_eq!((error.kind(), error.retryability()), (ErrorKind::Unavailable, Retryability::Safe));
    }

    #[test]
    fn codes_have_kinds() {
        for (code, kind) in [
            (RDKafkaErrorCode::UnknownTopicOrPartition, ErrorKind::NotFound),
            (RDKafkaErrorCode::MessageSizeTooLarge, ErrorKind::TooLarge),
            (RDKafkaErrorCode::FencedInstanceId, ErrorKind::Fenced),
            (RDKafkaErrorCode::SaslAuthenticationFailed, ErrorKind::Denied),
            (RDKafkaErrorCode::QueueFull, ErrorKind::Overloaded),
            (RDKafkaErrorCode::UnknownLeaderEpoch, ErrorKind::Unavailable),
            // As a join met it while its broker was killed: it passes.
            (RDKafkaErrorCode::NoEnt, ErrorKind::Unavailable),
            (RDKafkaErrorCode::Inconsistent, ErrorKind::Unavailable),
            (RDKafkaErrorCode::Application, ErrorKind::Unexpected),
        ] {
            assert_eq!(from_code("test", code).kind(), kind, "{code:?}");
        }
    }
}
