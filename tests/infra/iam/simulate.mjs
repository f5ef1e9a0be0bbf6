// Requests against policies, both as JSON on standard input; one decision each on standard output.
// A request that AWS does not know (action, resource type or condition key) ends the run.
import { runSimulation } from '@cloud-copilot/iam-simulate'
import { readFileSync } from 'node:fs'

const decisions = []
for (const { policy, resourcePolicy, principal, action, resource, context } of JSON.parse(readFileSync(0, 'utf8'))) {
  const response = await runSimulation(
    {
      request: {
        principal,
        action,
        resource: { resource, accountId: '123456789012' },
        contextVariables: { 'aws:SecureTransport': 'true', ...context },
      },
      identityPolicies: [{ name: 'tested', policy }],
      resourcePolicy,
      serviceControlPolicies: [],
      resourceControlPolicies: [],
    },
    { simulationMode: 'Strict' },
  )
  if (response.resultType === 'error') {
    console.error(`${action} on ${resource}: ${JSON.stringify(response.errors)}`)
    process.exit(1)
  }
  decisions.push(response.overallResult)
}
console.log(JSON.stringify(decisions))
