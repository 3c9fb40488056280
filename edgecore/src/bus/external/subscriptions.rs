//! What our session at the external broker may be subscribed to.
//!
//! The session outlives us: a rule that went while we were away left its topic there, and the broker
//! would go on to keep messages for it. What we ask for is written down first, and taken out when
//! the broker has confirmed that it is gone; the rest is left with the next connection.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rumqttc::{AsyncClient, QoS};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use wire::rules::Routes;
use wire::topic::FILTERS;

use crate::store::{Store, StoreError};

const FACT: &str = "mqtt_external_filters";

/// What this node wants from an external broker now.
pub(super) fn filters(routes: &Routes) -> impl Iterator<Item = &str> {
    let of_rules = routes.topics.iter().map(String::as_str);
    FILTERS.into_iter().chain(of_rules)
}

/// As written: of another session it says nothing about ours.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    session: String,
    filters: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct State {
    record: Record,
    is_written: bool,
    /// Handed to the client to be unsubscribed, oldest first.
    queued: VecDeque<String>,
    /// The same on their way, by packet id.
    sent: HashMap<u16, String>,
}

/// See the module. Clones share it.
#[derive(Clone)]
pub(super) struct Subscriptions {
    store: Store,
    state: Arc<Mutex<State>>,
}

impl Subscriptions {
    /// What was written of `session`.
    pub(super) async fn load(store: Store, session: String) -> Self {
        let kept = store.read(load).await;
        let kept = kept.unwrap_or_else(|error| {
            tracing::warn!(%error, "what the external MQTT broker was asked for is not known");
            None
        });
        let record = kept.filter(|kept| kept.session == session);
        let is_written = record.is_some();
        let record = record.unwrap_or(Record {
            session,
            filters: BTreeSet::new(),
        });
        let state = State {
            record,
            is_written,
            ..State::default()
        };
        Self {
            store,
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The broker has no session of ours.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.is_written &= state.record.filters.is_empty();
        state.record.filters.clear();
    }

    /// Writes down what is about to be asked for.
    pub(super) async fn hold(&self, routes: &Routes) {
        {
            let mut state = self.state();
            for filter in filters(routes) {
                if !state.record.filters.contains(filter) {
                    state.record.filters.insert(filter.to_owned());
                    state.is_written = false;
                }
            }
            if state.is_written {
                return;
            }
        }
        let this = self.clone();
        if let Err(error) = self.store.write(move |tx| this.save(tx)).await {
            // A node with a full disk hears its devices all the same.
            tracing::debug!(%error, "subscriptions at the external MQTT broker not written down");
        }
    }

    /// What it holds and nobody wants.
    fn stale(&self, routes: &Routes) -> Vec<String> {
        let mut stale = self.state().record.filters.clone();
        for filter in filters(routes) {
            stale.remove(filter);
        }
        stale.into_iter().collect()
    }

    /// Handed to the client, to be unsubscribed.
    fn queued(&self, filter: String) {
        self.state().queued.push_back(filter);
    }

    /// The client sent the oldest of them.
    pub(super) fn sent(&self, pkid: u16) {
        let mut state = self.state();
        if let Some(filter) = state.queued.pop_front() {
            state.sent.insert(pkid, filter);
        }
    }

    /// The broker has confirmed one. It may be wanted again meanwhile.
    pub(super) fn left(&self, pkid: u16, routes: &Routes) {
        {
            let mut state = self.state();
            let Some(filter) = state.sent.remove(&pkid) else {
                return;
            };
            let is_under_way =
                state.queued.contains(&filter) || state.sent.values().any(|other| *other == filter);
            if is_under_way || filters(routes).any(|wanted| wanted == filter) {
                return;
            }
            state.is_written &= !state.record.filters.remove(&filter);
        }
        let this = self.clone();
        // What is not written is left once more with the next connection.
        drop(self.store.submit_fn(move |tx| this.save(tx), drop));
    }

    /// What was not confirmed is asked for again.
    pub(super) fn disconnected(&self) {
        let mut state = self.state();
        state.queued.clear();
        state.sent.clear();
    }

    /// As it is when the store comes to it, so that none overtakes a later one.
    fn save(&self, tx: &Connection) -> Result<(), StoreError> {
        let text = {
            let mut state = self.state();
            state.is_written = true;
            serde_json::to_string(&state.record)
        };
        let text = text.map_err(|error| StoreError::Refused(error.to_string()))?;
        let saved = tx.execute(
            "INSERT INTO facts (name, value) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (FACT, text),
        );
        self.state().is_written = saved.is_ok();
        saved?;
        Ok(())
    }
}

fn load(conn: &Connection) -> Result<Option<Record>, StoreError> {
    let kept: Option<String> = conn
        .query_row("SELECT value FROM facts WHERE name = ?1", [FACT], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(kept.and_then(|text| serde_json::from_str(&text).ok()))
}

/// Subscribes to what rules add, and leaves what nobody wants. Each new connection subscribes to
/// all of it by itself.
pub(super) async fn follow(
    client: AsyncClient,
    mut routes: watch::Receiver<Arc<Routes>>,
    mut is_up: watch::Receiver<bool>,
    known: Subscriptions,
) {
    let mut asked_for = Arc::clone(&routes.borrow_and_update());
    loop {
        // Cancel-safe: both only wait.
        tokio::select! {
            changed = routes.changed() => if changed.is_err() { break },
            changed = is_up.changed() => if changed.is_err() { break },
        }
        let wanted = Arc::clone(&routes.borrow_and_update());
        if !*is_up.borrow_and_update() {
            continue;
        }
        known.hold(&wanted).await;
        for filter in known.stale(&wanted) {
            match client.unsubscribe(filter.clone()).await {
                Ok(()) => known.queued(filter),
                Err(error) => {
                    tracing::debug!(%error, "topic of a rule not left at the external MQTT broker");
                }
            }
        }
        for topic in wanted.topics.difference(&asked_for.topics) {
            if let Err(error) = client.subscribe(topic.clone(), QoS::AtLeastOnce).await {
                tracing::warn!(%error, "no subscription for a rule at the external MQTT broker");
            }
        }
        asked_for = wanted;
    }
    // Who told is gone, and with it everything else.
    std::future::pending::<()>().await;
}
