//! What can be done to members, links and brokers.

use std::fmt;

/// The network of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Link {
    Member(u32),
    Publisher(u32),
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(number) => write!(f, "member-{number}"),
            Self::Publisher(number) => write!(f, "publisher-{number}"),
        }
    }
}

/// One thing that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Join(u32),
    /// SIGTERM: it drains.
    Leave(u32),
    /// SIGKILL.
    Kill(u32),
    /// A publisher begins, with keys of its own.
    Publish(u32),
    /// SIGKILL, with publishes that have no answer yet.
    KillPublisher(u32),
    /// SIGSTOP.
    Stop(u32),
    /// SIGCONT.
    Continue(u32),
    /// Connections are reset.
    Cut(Link),
    /// Connections stay, and nothing passes.
    Stall(Link),
    Heal(Link),
    /// A node of the broker ends gracefully.
    NodeStop(usize),
    NodeKill(usize),
    NodeFreeze(usize),
    NodeStart(usize),
    NodeThaw(usize),
    /// Memory: a partition, drawn by this number, is given up with notice, and goes to any member.
    Revoke(u64),
    /// Memory: a partition, drawn by this number, is lost without notice, and goes to another member.
    Lose(u64),
    /// Memory: the broker ends this membership.
    Crash(u32),
    /// Memory: commits are refused.
    CommitsFail,
    CommitsWork,
    /// Memory: publishes fail.
    PublishesFail,
    PublishesWork,
}

impl Act {
    /// The kind, for counting; `None` when it only ends another.
    pub(crate) fn kind(self) -> Option<&'static str> {
        Some(match self {
            Self::Join(_) => "join",
            Self::Leave(_) => "leave",
            Self::Kill(_) => "kill",
            Self::KillPublisher(_) => "kill publisher",
            Self::Stop(_) => "stop",
            Self::Cut(Link::Member(_)) => "cut member",
            Self::Cut(Link::Publisher(_)) => "cut publisher",
            Self::Stall(Link::Member(_)) => "stall member",
            Self::Stall(Link::Publisher(_)) => "stall publisher",
            Self::NodeStop(_) => "broker restart",
            Self::NodeKill(_) => "broker kill",
            Self::NodeFreeze(_) => "broker freeze",
            Self::Revoke(_) => "revoke",
            Self::Lose(_) => "lose",
            Self::Crash(_) => "crash",
            Self::CommitsFail => "commits fail",
            Self::PublishesFail => "publishes fail",
            Self::Publish(_)
            | Self::Continue(_)
            | Self::Heal(_)
            | Self::NodeStart(_)
            | Self::NodeThaw(_)
            | Self::CommitsWork
            | Self::PublishesWork => return None,
        })
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join(member) => write!(f, "member-{member} joins"),
            Self::Leave(member) => write!(f, "member-{member} leaves"),
            Self::Kill(member) => write!(f, "member-{member} is killed"),
            Self::Publish(publisher) => write!(f, "publisher-{publisher} begins"),
            Self::KillPublisher(publisher) => write!(f, "publisher-{publisher} is killed"),
            Self::Stop(member) => write!(f, "member-{member} is stopped"),
            Self::Continue(member) => write!(f, "member-{member} goes on"),
            Self::Cut(link) => write!(f, "{link} is cut off"),
            Self::Stall(link) => write!(f, "{link} has a silent network"),
            Self::Heal(link) => write!(f, "{link} is healed"),
            Self::NodeStop(node) => write!(f, "node {node} is stopped"),
            Self::NodeKill(node) => write!(f, "node {node} is killed"),
            Self::NodeFreeze(node) => write!(f, "node {node} is frozen"),
            Self::NodeStart(node) => write!(f, "node {node} is started"),
            Self::NodeThaw(node) => write!(f, "node {node} is thawed"),
            Self::Revoke(_) => f.write_str("a partition is revoked"),
            Self::Lose(_) => f.write_str("a partition is lost"),
            Self::Crash(member) => write!(f, "member-{member} crashes"),
            Self::CommitsFail => f.write_str("commits fail"),
            Self::CommitsWork => f.write_str("commits work"),
            Self::PublishesFail => f.write_str("publishes fail"),
            Self::PublishesWork => f.write_str("publishes work"),
        }
    }
}

impl Act {
    /// The member that it is about.
    pub(crate) fn member(self) -> Option<u32> {
        match self {
            Self::Join(number)
            | Self::Leave(number)
            | Self::Kill(number)
            | Self::Stop(number)
            | Self::Continue(number)
            | Self::Crash(number)
            | Self::Cut(Link::Member(number))
            | Self::Stall(Link::Member(number))
            | Self::Heal(Link::Member(number)) => Some(number),
            _ => None,
        }
    }
}
