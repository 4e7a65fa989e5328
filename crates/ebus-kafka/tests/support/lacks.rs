//! Faults of ownership that no Kafka makes on request, and where they are made in another way.

/// Why a case cannot run on Kafka, and where else it does.
pub(crate) fn on_request(case: &str) -> Option<String> {
    let instead = if case.starts_with("d07") {
        "Kafka refuses no commit on request; d07_... of mock_faults has it refused for every reason there is"
    } else if case.starts_with("d08") {
        "Kafka takes no partition away on request; p3_... of mock_faults ends memberships, and d12_... of groups freezes a \
        member past its session"
    } else {
        return None;
    };
    Some(instead.to_owned())
}
