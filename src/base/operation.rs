//! Defines the operations that a provider's file can describe, one table row each.
//!
//! A new operation is a new row here. The code that uses it decides how it is routed and what it returns.

/// A request to a provider that its file describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Operation {
    /// Reads one session.
    GetSession,
    /// Reads a page of sessions.
    ListSessions,
}

/// The properties of an operation that are the same for all providers.
struct Row {
    operation: Operation,
    /// The name in provider files, cache keys, metrics and `GET /v1/providers`.
    name: &'static str,
    /// The config key of the path to the session or sessions in the provider's body.
    body_key: &'static str,
    /// The member of the unified response with the items of a page. `None` if the operation returns one item.
    page_member: Option<&'static str>,
    /// The id that the request's path has.
    id_kind: OperationId,
    /// What a client can do with the operation, for messages.
    action: &'static str,
}

/// The id that the path of an operation's request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperationId {
    /// A session's id.
    Session,
    /// An agent's id, if the provider has agents.
    Agent,
}

const COUNT: usize = 2;

const TABLE: [Row; COUNT] = [
    Row {
        operation: Operation::GetSession,
        name: "get_session",
        body_key: "item",
        page_member: None,
        id_kind: OperationId::Session,
        action: "read one session",
    },
    Row {
        operation: Operation::ListSessions,
        name: "list_sessions",
        body_key: "items",
        page_member: Some("sessions"),
        id_kind: OperationId::Agent,
        action: "list sessions",
    },
];

impl Operation {
    /// Returns all operations, in the order of the table.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        TABLE.iter().map(|row| row.operation)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Returns the name in provider files, cache keys, metrics and `GET /v1/providers`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Returns the config key of the path to the session or sessions in the provider's body.
    #[must_use]
    pub fn body_key(self) -> &'static str {
        self.row().body_key
    }

    /// Returns the member of the unified response with the items of a page. `None` if the operation returns one item.
    #[must_use]
    pub fn page_member(self) -> Option<&'static str> {
        self.row().page_member
    }

    /// Returns whether the operation returns a page of items.
    #[must_use]
    pub fn is_page(self) -> bool {
        self.row().page_member.is_some()
    }

    /// Returns the operation that makes a unified response, given whether the response has a member.
    pub(crate) fn of_response(has_member: impl Fn(&str) -> bool) -> Self {
        let page = TABLE.iter().find(|row| row.page_member.is_some_and(&has_member));
        page.map_or(Self::GetSession, |row| row.operation)
    }

    /// Returns which id the request's path has.
    pub(crate) fn id_kind(self) -> OperationId {
        self.row().id_kind
    }

    /// Returns what a client can do with the operation, for messages: `list sessions`.
    #[must_use]
    pub fn action(self) -> &'static str {
        self.row().action
    }
}

/// A value for each operation that has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerOperation<T>([Option<T>; COUNT]);

impl<T> PerOperation<T> {
    /// Creates the value of each operation, in the order of the table.
    pub fn make(mut value: impl FnMut(Operation) -> Option<T>) -> Self {
        Self(std::array::from_fn(|position| value(TABLE[position].operation)))
    }

    /// Returns the value of an operation.
    #[must_use]
    pub fn get(&self, operation: Operation) -> Option<&T> {
        self.0[operation as usize].as_ref()
    }

    /// Returns whether the operation has a value.
    #[must_use]
    pub fn has(&self, operation: Operation) -> bool {
        self.get(operation).is_some()
    }

    /// Returns all operations that have a value, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (Operation, &T)> {
        TABLE.iter().zip(&self.0).filter_map(|(row, value)| Some((row.operation, value.as_ref()?)))
    }
}

/// A value for every operation.
#[derive(Debug, Default)]
pub struct EveryOperation<T>([T; COUNT]);

impl<T> std::ops::Index<Operation> for EveryOperation<T> {
    type Output = T;

    fn index(&self, operation: Operation) -> &T {
        &self.0[operation as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_has_its_own_row() {
        for (position, row) in TABLE.iter().enumerate() {
            assert_eq!(row.operation as usize, position, "{}", row.name);
        }
        let named = PerOperation::make(|operation| operation.is_page().then_some(operation.name()));
        assert_eq!(
            named.iter().collect::<Vec<_>>(),
            [(Operation::ListSessions, "list_sessions")].iter().map(|(o, n)| (*o, n)).collect::<Vec<_>>()
        );
        assert!(!named.has(Operation::GetSession));
    }
}
