-- How Argo CD shows a FineTuneJob. Its status is in the format of kstatus: observedGeneration, and the conditions
-- Ready, Reconciling and Stalled, which operator/finetune_operator/policy/draft.py sets.
local status = obj.status or {}
if status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "waiting for the operator"}
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end

local function is_true(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end

local ready = conditions["Ready"] or {}
local message = (status.phase or "Pending") .. ": " .. (ready.message or "")
if is_true("Ready") then
  return {status = "Healthy", message = message}
elseif is_true("Stalled") then
  return {status = "Degraded", message = message}
elseif is_true("Suspended") then
  return {status = "Suspended", message = message}
end
return {status = "Progressing", message = message}
