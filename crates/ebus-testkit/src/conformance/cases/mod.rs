//! The cases, by what they are about.

use std::pin::Pin;
use std::sync::Arc;

use super::ctx::Ctx;
use super::failure::Checked;

mod a_one;
mod b_many;
mod c_batch;
mod c_failure;
mod c_once;
mod c_parked;
mod d_cut_off;
mod d_hand_over;
mod d_ownership;
mod d_revoked;
mod d_shared;
mod d_tokens;
mod e_log;
mod e_restart;
mod f_bounds;
mod f_hot;
mod g_control;
mod g_pause;
mod h_trouble;
mod i_life;
mod i_race;

pub(super) type Running = Pin<Box<dyn Future<Output = Checked> + Send>>;

/// A case.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) needs: Needs,
    pub(super) run: fn(Arc<Ctx>) -> Running,
}

/// What a backend must be able to do for a case; without it the case is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing special.
    Anywhere,
    /// Several members in one group.
    Several,
    /// [`Faults`](super::faults::Faults), and several members.
    Faults,
    /// A place for parked keys.
    Parking,
    /// [`LogFaults`](super::faults::LogFaults).
    LogFaults,
    /// A broker of its own, of one node.
    OwnBroker,
    /// A broker of its own, of three nodes.
    OwnCluster,
    /// A network that can be broken: [`Harness::connect_linked`](super::Harness::connect_linked).
    Links,
    /// That, and several members.
    SeveralLinks,
    /// That, and minutes of time: only with `EBUS_LONG`.
    LongLinks,
}

impl Needs {
    /// How many nodes its own broker has.
    pub(super) fn nodes(self) -> Option<usize> {
        match self {
            Self::OwnBroker => Some(1),
            Self::OwnCluster => Some(3),
            _ => None,
        }
    }
}

/// `module Needs { cases }`.
macro_rules! cases {
    ($($module:ident $needs:ident { $($name:ident)* })*) => {
        vec![$($(Case {
            name: stringify!($name),
            needs: Needs::$needs,
            run: |ctx| Box::pin(async move { $module::$name(&ctx).await }),
        }),*),*]
    };
}

pub(super) fn all() -> Vec<Case> {
    cases! {
        a_one Anywhere {
            a01_arrives_as_sent
            a02_too_large_is_refused_at_once
            a03_an_illegal_name_is_refused
            a04_topics_do_not_leak
            a05_a_receipt_names_the_place
        }
        b_many Anywhere {
            b01_many_publishers_many_members
            b02_a_second_group_gets_everything
            b03_a_late_group_from_earliest_or_latest
            b04_versions_of_a_key_one_at_a_time_in_order
            b05_many_keys_run_in_parallel
            b06_messages_without_a_key_use_every_shard
            b07_publish_order_per_key
        }
        b_many Several {
            b02_two_members_share_the_work
        }
        c_failure Anywhere {
            c01_fails_once_then_goes_on
            c02_fails_for_ever_one_dead_letter
            c03_dead_letter_topic_is_down
            c04_permanent_error_no_second_attempt
            c05_panic_is_the_failure_of_that_message
            c06_undecodable_is_a_dead_letter
            c07_a_retry_that_waits_holds_no_slot
            c11_a_dead_letter_too_large_is_cut_and_marked
            c12_without_dead_letters_retried_for_ever
        }
        c_once Anywhere {
            c10_at_most_once_is_committed_before_it_starts
            c10_killed_between_commit_and_start_nothing_runs_twice
            c10_at_most_once_leaves_without_a_loss
            c10_drop_on_failure_loses_exactly_what_fails
        }
        c_once Several {
            c10_at_most_once_is_handed_over_under_load
        }
        c_once Faults {
            c10_while_commits_are_refused_nothing_starts
        }
        c_parked Parking {
            c13_what_follows_a_dead_letter_is_parked_and_redriven
            c14_the_next_owner_knows_what_is_parked
            c15_a_redrive_that_fails_again_stops_there
            c16_killed_while_redriving_the_next_goes_on
            c17_a_full_list_makes_a_key_wait
            c18_handed_over_while_redriving_repeats_nothing
            c19_what_a_former_owner_writes_does_not_count
            c25_more_parked_keys_than_are_kept_are_refused
            c27_who_looks_for_parked_keys_creates_none
        }
        c_batch Anywhere {
            c20_a_batch_fills_or_comes_of_age
            c21_only_the_failed_of_a_batch_run_again
            c22_one_that_panics_takes_a_batch_with_it_once
            c23_a_batch_that_outlives_a_drain_is_handled_by_the_next
            c26_a_batch_that_its_partition_cannot_fill_waits_for_nothing
        }
        c_batch Several {
            c24_batches_are_handed_over_under_load
        }
        d_hand_over Anywhere {
            d02_leaves_cleanly_with_a_slow_key
            d03_killed_runs_again_since_the_last_commit
            d03_dropped_here_overlaps_nothing
            d13_take_over_kill_take_over
            d14_what_waits_at_a_hand_over_runs_at_the_next
        }
        d_ownership Several {
            d01_joins_under_load
            d04_revoked_and_handed_straight_back
        }
        d_revoked Several {
            d06_what_outlives_the_deadline_is_cancelled_first
            d11_what_stays_flows_while_a_hand_over_waits
            d15_a_pool_full_of_a_stuck_key_hands_over
        }
        d_revoked Faults {
            d07_a_commit_fails_at_a_hand_over
            d08_lost_without_notice
        }
        d_shared Several {
            d09_a_queued_backlog_is_handed_over
            d10_random_joins_leaves_and_kills
        }
        d_tokens Several {
            d05_the_settlement_of_an_old_epoch_is_void
        }
        e_log LogFaults {
            e03_gaps_do_not_stop_commits
            e04_a_position_without_its_log_is_reset
            e06_damaged_metadata_loses_nothing
        }
        e_restart Anywhere {
            e07_latest_misses_nothing_after_start
            e01_restart_resumes
            e02_commit_never_passes_an_unfinished
            e05_closing_deletes_nothing
        }
        f_bounds Anywhere {
            f01_slow_handler_fast_broker
            f02_two_hundred_thousand_to_one_blocked_key
            f04_one_message_that_never_finishes
        }
        f_hot Anywhere {
            f03_a_hot_key_delays_only_itself
        }
        g_pause Anywhere {
            g02_a_topic_and_all_pause_and_resume
            g05_what_comes_before_a_handler_is_held
            g06_one_subscription_ends_the_others_go_on
        }
        g_pause Several {
            g02_a_pause_lasts_over_a_rebalance
        }
        g_control Anywhere {
            g01_drain_finishes_what_runs
            g01_drain_cancels_at_its_deadline
            g04_subscribe_a_second_topic_later
        }
        d_cut_off SeveralLinks {
            d12_cut_off_past_its_lease_it_is_fenced
        }
        h_trouble OwnBroker {
            h01_the_broker_restarts
            h03_the_broker_is_gone_for_good
        }
        h_trouble Links {
            h02_the_network_is_cut_for_5_s
            h02_the_network_stalls_for_5_s
        }
        h_trouble LongLinks {
            h02_the_network_is_cut_for_60_s
            h02_the_network_stalls_for_60_s
        }
        h_trouble OwnCluster {
            h04_a_cluster_loses_one_node_then_another
        }
        i_life Anywhere {
            i01_close_twice_one_result
            i02_after_close_everything_says_closed
            i06_no_time_is_too_long
        }
        i_race Anywhere {
            i03_publish_racing_with_close
            i04_dropped_futures_leave_it_usable
        }
    }
}
