//! Describes the POST of an endpoint, whose body is a form.

use super::Description;
use crate::base::endpoints::{Endpoint, ParameterLocation};
use serde_json::{Map, Value, json};

impl Description<'_> {
    /// Describes the POST of an endpoint, which has the parameters of the query in a form.
    pub(super) fn form_operation(&mut self, endpoint: &Endpoint) -> Value {
        let mut operation = self.operation(endpoint, false);
        operation["operationId"] = format!("{}ByForm", endpoint.operation_id).into();
        let is_header = |parameter: &Value| parameter.get("in").is_none();
        let is_condition = |parameter: &Value| parameter["$ref"] == "#/components/parameters/ifNoneMatch";
        if let Some(parameters) = operation["parameters"].as_array_mut() {
            parameters.retain(|parameter| is_header(parameter) && !is_condition(parameter));
        }
        if let Some(responses) = operation["responses"].as_object_mut() {
            responses.remove("304");
        }
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for parameter in endpoint.query_parameters() {
            let mut described = self.parameter(endpoint, parameter);
            let mut schema = described["schema"].take();
            schema["description"] = described["description"].take();
            if !described["example"].is_null() {
                schema["examples"] = json!([described["example"].take()]);
            }
            // A form cannot tell an empty array from none.
            if let Some(schema) = schema.as_object_mut().filter(|_| parameter.location == ParameterLocation::Repeated) {
                schema.remove("minItems");
            }
            properties.insert(parameter.name.to_owned(), schema);
            if parameter.location == ParameterLocation::Required {
                required.push(parameter.name);
            }
        }
        let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/x-www-form-urlencoded": { "schema": schema } } });
        operation
    }
}
