//! What rules want from nodes: topics to subscribe to, URLs to open (device plane §6.4, §6.5). Told
//! when a rule changes, and on every connect: what KubeEdge sends once is lost to a node that is
//! away.

use std::collections::BTreeMap;

use apiserver::store::{Store, StoreError, Txn};
use wire::{message::Content, message::Message, rules::ROUTES, rules::Routes};

use super::Controller;
use crate::{clock, rules, session::SessionHandle};

/// What a node was told last.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Of which connection.
    generation: u64,
    routes: Routes,
}

impl Controller {
    /// A rule or an endpoint has changed.
    pub(super) async fn reroute(&mut self) -> Result<(), StoreError> {
        let mut wanted = rules::routes(&*self.store).await?;
        for session in self.registry.all() {
            let routes = wanted.remove(&session.node).unwrap_or_default();
            // A node that is not brought up to date yet is told then.
            let is_known = self.told.get(&session.node);
            if is_known.is_some_and(|told| told.generation == session.generation) {
                self.tell(&session, routes).await;
            }
        }
        Ok(())
    }

    /// A node has connected.
    pub(super) async fn route(
        &mut self,
        session: &SessionHandle,
        has_joined: bool,
    ) -> Result<(), StoreError> {
        let mut wanted = rules::routes(&*self.store).await?;
        let routes = wanted.remove(&session.node).unwrap_or_default();
        if !session.extensions.routes && !self.told.contains_key(&session.node) {
            // Told before this hub started.
            let routes = self.noted(&session.node).await?;
            let generation = 0;
            let told = Told { generation, routes };
            self.told.insert(session.node.clone(), told);
        }
        // A store that was lost knows of no rules: that is no reason to drop what devices publish.
        if has_joined || routes != Routes::default() {
            self.tell(session, routes).await;
        } else {
            let generation = session.generation;
            let told = Told { generation, routes };
            self.told.insert(session.node.clone(), told);
        }
        Ok(())
    }

    async fn tell(&mut self, session: &SessionHandle, routes: Routes) {
        let told = self.told.entry(session.node.clone()).or_default();
        let is_again = told.generation == session.generation;
        if is_again && told.routes == routes {
            return;
        }
        if session.extensions.routes {
            let id = uuid::Uuid::new_v4().to_string();
            let message = routes.clone().into_message(id, clock::unix_millis());
            session.offer(ROUTES.to_owned(), message);
        } else {
            let is_news = told.routes != routes;
            let before = if is_again {
                std::mem::take(&mut told.routes)
            } else {
                // Subscribed again in any case: what it was told then may have been lost.
                gone(&told.routes, &routes)
            };
            for route in routes.steps_from(&before) {
                let id = uuid::Uuid::new_v4().to_string();
                let now = clock::unix_millis();
                session.notice(Message::new(id, now, route, Content::null()));
            }
            if is_news {
                note(&*self.store, &session.node, &routes).await;
            }
        }
        *told = Told {
            generation: session.generation,
            routes,
        };
    }

    async fn noted(&self, node: &str) -> Result<Routes, StoreError> {
        let noted = self.store.get(&told_key(node)).await?;
        Ok(noted
            .and_then(|entry| serde_json::from_slice(&entry.value).ok())
            .unwrap_or_default())
    }

    /// A node was deleted.
    pub(super) async fn forget_routes(&mut self, node: &str) {
        let told = self.told.remove(node);
        if told.is_none_or(|told| told.routes != Routes::default()) {
            note(&*self.store, node, &Routes::default()).await;
        }
    }
}

/// What a plain node was told, which it keeps for ever: only who remembers it can take it back.
/// Ours are told everything at once, and nothing is noted of them.
async fn note(store: &dyn Store, node: &str, routes: &Routes) {
    let key = told_key(node);
    let txn = if *routes == Routes::default() {
        Txn::new().delete(key)
    } else {
        Txn::new().put(key, serde_json::to_vec(routes).unwrap_or_default())
    };
    if let Err(error) = store.txn(txn).await {
        tracing::warn!(node, %error, "what a node was told of rules could not be noted");
    }
}

fn told_key(node: &str) -> String {
    format!("/outpost/told/{node}")
}

/// By node; as many as have connected since the hub's start and are not deleted.
pub(super) type ToldBy = BTreeMap<String, Told>;

/// What was wanted before and is not any more.
fn gone(before: &Routes, now: &Routes) -> Routes {
    Routes {
        topics: before.topics.difference(&now.topics).cloned().collect(),
        urls: before.urls.difference(&now.urls).cloned().collect(),
    }
}
