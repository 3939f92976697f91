//! Defines the ids of clients and providers: positions in a snapshot, as separate types.
//!
//! An id is valid only in the snapshot that it came from.

use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// The position of a client in its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(usize);

/// The position of a provider in its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProviderId(usize);

/// An id: the position of a value in an [`IdVec`].
pub trait Id: Copy {
    /// Returns the id of a position.
    fn at(position: usize) -> Self;
    /// Returns the position of this id.
    fn position(self) -> usize;
}

impl Id for ClientId {
    fn at(position: usize) -> Self {
        Self(position)
    }

    fn position(self) -> usize {
        self.0
    }
}

impl Id for ProviderId {
    fn at(position: usize) -> Self {
        Self(position)
    }

    fn position(self) -> usize {
        self.0
    }
}

/// A list that is indexed by one kind of id only.
#[derive(Debug, Clone)]
pub struct IdVec<I, T> {
    values: Vec<T>,
    id: PhantomData<I>,
}

impl<I: Id, T> IdVec<I, T> {
    /// Returns all values, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.values.iter()
    }

    /// Returns all ids with their values, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (I, &T)> {
        self.values.iter().enumerate().map(|(position, value)| (I::at(position), value))
    }

    /// Returns all ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = I> {
        (0..self.values.len()).map(I::at)
    }

    /// Returns the id of the first value for which `filter` returns `true`.
    pub fn find(&self, mut filter: impl FnMut(&T) -> bool) -> Option<I> {
        self.pairs().find(|(_, value)| filter(value)).map(|(id, _)| id)
    }

    /// Returns the number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

impl<I, T> Default for IdVec<I, T> {
    fn default() -> Self {
        Self { values: Vec::new(), id: PhantomData }
    }
}

impl<I, T> FromIterator<T> for IdVec<I, T> {
    fn from_iter<A: IntoIterator<Item = T>>(values: A) -> Self {
        Self { values: values.into_iter().collect(), id: PhantomData }
    }
}

impl<'v, I: Id, T> IntoIterator for &'v IdVec<I, T> {
    type Item = &'v T;
    type IntoIter = std::slice::Iter<'v, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'v, I: Id, T> IntoIterator for &'v mut IdVec<I, T> {
    type Item = &'v mut T;
    type IntoIter = std::slice::IterMut<'v, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.values.iter_mut()
    }
}

impl<I: Id, T> Index<I> for IdVec<I, T> {
    type Output = T;

    fn index(&self, id: I) -> &T {
        &self.values[id.position()]
    }
}

impl<I: Id, T> IndexMut<I> for IdVec<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.values[id.position()]
    }
}
